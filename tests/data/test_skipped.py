import pytest

from gh_downstream.data.skipped import SkippedImages


def test_an_image_counts_once_in_each_data_set():
    skipped = SkippedImages({"source": 10, "target": 10}, 0.2)
    assert skipped.add("source", "a.png", "a.png is cut")
    assert skipped.add("target", "a.png", "a.png is cut")
    assert skipped.add("source", "b.png", "b.png is missing")
    assert not skipped.add("source", "a.png", "a.png is cut")
    assert len(skipped) == 3
    assert skipped.found["source"] == {"a.png": "a.png is cut", "b.png": "b.png is missing"}


@pytest.mark.parametrize(("size", "share", "allowed"), [(100, 0.29, 29), (100, 0.01, 1), (99, 0.01, 0), (5, 0.0, 0)])
def test_more_than_the_share_is_an_error_that_names_them(size, share, allowed):
    skipped = SkippedImages({"source": size, "target": 1000}, share)
    for number in range(allowed):
        skipped.add("source", f"{number}.png", f"{number}.png is cut")
    with pytest.raises(
        ValueError, match=rf"^source: {allowed + 1} of {size} images .* max_skipped={share:g} "
    ) as error:
        skipped.add("source", "last.png", "last.png is cut")
    lines = str(error.value).splitlines()[1:]
    if allowed < 10:
        assert lines == [*(f"{number}.png is cut" for number in range(allowed)), "last.png is cut"]
    else:
        assert lines == [*(f"{number}.png is cut" for number in range(10)), f"and {allowed + 1 - 10} more"]
