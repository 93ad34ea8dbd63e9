"""Classifies many images, measures accuracy and tunes engines in this process, without a server or a terminal."""
