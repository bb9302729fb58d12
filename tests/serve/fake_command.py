"""`python -m serve` with services and avatars that are made of nothing."""

from engine.command import program
from serve import __main__ as command
from serve.server import Server
from tests.serve.stage import Fakes


def server(config):
    fakes = Fakes()
    return Server(config, make_avatars=fakes.make_avatars, make_services=fakes.make_services)


if __name__ == "__main__":
    command.Server = server
    program(command.main)
