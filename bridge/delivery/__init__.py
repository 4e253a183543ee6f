"""Delivery: takes records from the outbox to the sinks, one pump per sink."""
