"""One module from folder to folder: read, plan, port, write with a card.

``peftport.porting`` knows modules in memory; this layer knows where they lie and what their
folders say of their hosts.
"""

from peftport.port_folder.card import Worth
from peftport.port_folder.prepare import Prepared, prepare
from peftport.port_folder.run import (
    Ported,
    both_hosts,
    carried,
    carry_out,
    port,
    wanted_texts,
    with_notes,
    write,
)

__all__ = [
    "Ported",
    "Prepared",
    "Worth",
    "both_hosts",
    "carried",
    "carry_out",
    "port",
    "prepare",
    "wanted_texts",
    "with_notes",
    "write",
]
