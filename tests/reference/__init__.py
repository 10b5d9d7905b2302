"""Tests that need published weights."""
