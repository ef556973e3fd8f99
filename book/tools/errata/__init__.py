"""How large the errors of the documents are, computed: one module for each topic of the register."""
