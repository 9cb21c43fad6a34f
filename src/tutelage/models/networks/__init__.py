"""The networks of the CIFAR-100 benchmark."""
