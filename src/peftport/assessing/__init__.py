"""What an adapter is worth on another host, on the user's own data.

The package is not called ``assess``, because ``peftport.assess`` is the function.
"""

from peftport.assessing.run import Assessment, assess
from peftport.assessing.settings import Settings
from peftport.assessing.verdict import Judgement, Thresholds, judge

__all__ = ["Assessment", "Judgement", "Settings", "Thresholds", "assess", "judge"]
