"""The Kafka sink, based on aiokafka: records in a topic, and optionally the current state in a compacted topic."""
