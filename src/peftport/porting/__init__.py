"""Port a module to another host: plan first, then apply."""

from peftport.porting.apply import apply_port
from peftport.porting.controls import body_only, head_only, sampled
from peftport.porting.layers import cka_layers
from peftport.porting.plan import PortPlan, plan_port
from peftport.porting.spaces import Correspondence
from peftport.porting.strategies.base import strategies

__all__ = [
    "Correspondence",
    "PortPlan",
    "apply_port",
    "body_only",
    "cka_layers",
    "head_only",
    "plan_port",
    "sampled",
    "strategies",
]
