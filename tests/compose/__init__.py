"""`python -m tests.compose`: the images and the compose file, built and run for real; needs a Docker Engine."""
