"""What is done is gone at once: a full garbage collection holds the loop while it looks."""

import gc

from tests.support.universe import live, tombstone, upsert


def test_documents_that_are_done_leave_nothing_to_the_garbage_collector():
    async def story(universe):
        universe.start()
        for version in (1, 2):
            for number in range(20):
                universe.publish(upsert(f"d{number}", version, f"text {number} {version}"))
            universe.publish(tombstone("d0"))
            await universe.settled()
            # Of the first round, what is made once.
            left = gc.collect()
        return left

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        assert live(story) == 0
    finally:
        if was_enabled:
            gc.enable()
