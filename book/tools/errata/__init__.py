"""How large the documents' errors are: one function for each, and one module for each topic.

A function returns named numbers. The sentence that holds them is a template in the row of the register.
"""

from __future__ import annotations

from typing import Any

Numbers = dict[str, Any]  # a name -> a number, a 0-d tensor, or a list of numbers
