"""REST over the classifier: translates HTTP to its one method and back."""
