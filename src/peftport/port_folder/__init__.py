"""One module from folder to folder: read, plan, port, write with a card.

``peftport.porting`` knows modules in memory; this layer knows where they lie and what their
folders say of their hosts.
"""

from peftport.port_folder.prepare import Prepared, prepare
from peftport.port_folder.run import Ported, carry_out, port, wanted_texts

__all__ = ["Ported", "Prepared", "carry_out", "port", "prepare", "wanted_texts"]
