"""All tests, in folders by what they need; tests/README.md lists them."""
