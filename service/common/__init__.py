"""What every package of the service uses; it imports no other of them."""
