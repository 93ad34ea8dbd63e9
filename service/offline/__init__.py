"""Many images through the classifier: what to run, what is done, how it is written and scored. No terminal here."""
