"""Types of libraries that take long to import, for type checkers and readers.

While the program runs they are `Any`, so that `import sgfbias` does not import xarray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xarray import DataArray as DataArray
    from xarray import Dataset as Dataset
else:
    DataArray = Dataset = Any
