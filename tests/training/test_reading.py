"""What is said of reading from servers."""

from resscale.data.remote_counts import ReadCounts
from resscale.training.reading import describe_reading


def test_reading_is_described_in_one_line() -> None:
    read = ReadCounts(requests=1204, retries=3, bytes=1_234_567_890, seconds=9, hits=955, direct=45)
    assert describe_reading(read) == (
        "read 1,234.6 MB from servers in 1,204 requests, 3 of them tried again, "
        "95.5% of the samples from the cache"
    )
    assert describe_reading(ReadCounts(requests=2, bytes=5)) == (
        "read 0.0 MB from servers in 2 requests, 0 of them tried again"
    )
