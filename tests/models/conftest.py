import pytest


@pytest.fixture
def watch():
    """Call a network and return what comes out, and each tap's value by its name, by plain hooks."""

    def call(network, taps, images):
        seen, handles = {}, []

        def at(tap):
            if tap.endswith(":input"):
                module = network.get_submodule(tap.removesuffix(":input"))
                # in-tap activations write over what they read
                return module.register_forward_pre_hook(lambda _, args: seen.update({tap: args[0].clone()}))
            return network.get_submodule(tap).register_forward_hook(lambda _, __, out: seen.update({tap: out}))

        for tap in dict.fromkeys(taps):
            handles.append(at(tap))
        try:
            return network(images), seen
        finally:
            for handle in handles:
                handle.remove()

    return call
