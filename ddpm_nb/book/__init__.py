"""What only the book needs: notebooks' parameters, figures, exercises, and the algorithms of the documents as printed."""
