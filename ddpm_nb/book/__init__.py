"""What only the book needs: parameters of notebooks, figures, exercises, and the documents' algorithms as printed."""
