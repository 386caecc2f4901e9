"""What the processes of a training tell each other."""

import pytest

from gh_downstream.training import shared_map


def mapped(rank):
    """The results of all items, how many this process computed, and the error of some."""
    computed = []

    def square(item):
        computed.append(item)
        return {"squared": item**2}

    def fail(item):
        if item % 3:
            raise FileNotFoundError(f"{item} is not there")
        return item

    found = [result["squared"] for result in shared_map(square, range(5))]
    with pytest.raises(FileNotFoundError) as error:
        list(shared_map(fail, range(5)))
    return found, computed, str(error.value), list(shared_map(square, []))


def test_a_single_process_computes_all_and_no_more_than_is_asked_for():
    assert mapped(0) == ([0, 1, 4, 9, 16], [0, 1, 2, 3, 4], "1 is not there", [])
    assert next(shared_map(lambda item: 1 / (1 - item), [0, 1])) == 1


@pytest.mark.slow
def test_each_item_is_computed_once_and_the_first_error_is_that_of_all(ranks):
    results = [0, 1, 4, 9, 16]
    first, second = ranks(mapped, group=False)
    assert first == (results, [0, 2, 4], "1 is not there", [])
    assert second == (results, [1, 3], "1 is not there", [])
