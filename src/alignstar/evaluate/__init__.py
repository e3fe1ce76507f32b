"""Measuring methods: statistics of paired results."""
