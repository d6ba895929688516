"""The options of ``streamrnn serve``: of the command line, the environment and a file."""

from streamrnn_server.options.options import add_options
from streamrnn_server.options.settings import Settings, print_settings, settings_of

__all__ = ["Settings", "add_options", "print_settings", "settings_of"]
