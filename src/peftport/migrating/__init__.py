"""A folder of adapters to a new host. (``peftport.migrate`` is the function, hence the name.)"""

from peftport.migrating.run import Migration, migrate

__all__ = ["Migration", "migrate"]
