"""A tqdm bar where one is asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yields a function that moves the bar on; without `shown` it does nothing.

    Raises:
        ImportError: a bar is asked for and tqdm is not installed.
    """
    if not shown:
        yield lambda n: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'diffsample[progress]'") from error
    with tqdm(total=total, unit=unit) as bar:
        yield bar.update
