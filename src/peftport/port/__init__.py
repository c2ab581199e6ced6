"""Port a module to another host: plan first, then apply."""

from peftport.port.apply import apply_port
from peftport.port.controls import body_only, head_only, sampled
from peftport.port.plan import PortPlan, plan_port
from peftport.port.spaces import Correspondence
from peftport.port.strategies.base import strategies

__all__ = [
    "Correspondence",
    "PortPlan",
    "apply_port",
    "body_only",
    "head_only",
    "plan_port",
    "sampled",
    "strategies",
]
