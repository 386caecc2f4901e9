"""What the processes of a training tell each other."""

import pytest

from gh_downstream.training import from_main, process_state


def told(rank):
    process_state()
    computed = []

    def compute():
        computed.append(rank)
        return {"from": rank}

    def fail():
        raise FileNotFoundError(f"rank {rank} does not find it")

    found = from_main(compute)
    with pytest.raises(FileNotFoundError) as error:
        from_main(fail)
    return found["from"], len(computed), str(error.value)


def test_a_single_process_computes_for_itself():
    assert told(0) == (0, 1, "rank 0 does not find it")


@pytest.mark.slow
def test_one_process_computes_for_all_and_its_error_is_that_of_all(ranks):
    message = "rank 0 does not find it"
    assert ranks(told, group=False) == [(0, 1, message), (0, 0, message)]
