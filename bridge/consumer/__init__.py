"""The consumer side: reads published records and projects them to the set of running containers."""

from bridge.consumer.projection import Change, SourceInfo
from bridge.consumer.record_decoder import Container, DecodedRecord, Source
from bridge.consumer.state import Running, State, follow, load_table

__all__ = ["Change", "Container", "DecodedRecord", "Running", "Source", "SourceInfo", "State", "follow", "load_table"]
