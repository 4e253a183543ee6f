"""The Kafka sink, based on aiokafka."""
