-- Tables of the records on standard input, one a line, for DuckDB: `records` has each record once, `running` the last
-- record of each running container, which is the fold of docs/events.md. Columns have the names of the contract.
--
--     kcat -C -e -b localhost:9092 -t containers | duckdb -init examples/records.sql -c 'SELECT host, id FROM running'
--
-- It expects the records of each source in order, apart from repetitions.

CREATE OR REPLACE TABLE records AS
WITH lines AS (
    SELECT
        row_number() OVER () AS line,
        CASE WHEN json ->> 'specversion' IS NULL THEN json ELSE json -> 'data' END AS record -- a CloudEvents envelope
    FROM read_ndjson_objects('/dev/stdin', ignore_errors = true)
), decoded AS (
    SELECT line, unnest(from_json(record, '{
        "version": "INTEGER", "type": "VARCHAR", "timestamp": "TIMESTAMP", "origin": "VARCHAR",
        "host": "VARCHAR", "engine": {"id": "VARCHAR"}, "epoch": "BIGINT", "sequence": "BIGINT", "id": "VARCHAR",
        "container": {"id": "VARCHAR", "namespace": "VARCHAR", "name": "VARCHAR", "project": "VARCHAR",
            "service": "VARCHAR", "incarnation": "VARCHAR", "paused": "BOOLEAN", "kind": "VARCHAR", "image": "VARCHAR",
            "image_digest": "VARCHAR", "labels": "MAP(VARCHAR, VARCHAR)",
            "pod": {"namespace": "VARCHAR", "name": "VARCHAR", "uid": "VARCHAR", "container": "VARCHAR"}},
        "start": {"at": "TIMESTAMP"}, "exit": {"status": "INTEGER", "at": "TIMESTAMP", "oom": "BOOLEAN"},
        "snapshot": {"failed": ["VARCHAR"]}, "attributes": "MAP(VARCHAR, VARCHAR)"}'))
    FROM lines
    WHERE coalesce(json_type(record, 'container'), 'NULL') IN ('OBJECT', 'NULL')
        AND coalesce(json_type(record, 'snapshot'), 'NULL') IN ('OBJECT', 'NULL')
), compared AS (
    SELECT
        *,
        max((epoch, sequence)) OVER (
            PARTITION BY host, engine.id ORDER BY line ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS newest -- position of all earlier records
    FROM decoded
    WHERE version = 1 AND type <> 'heartbeat'
        AND host IS NOT NULL AND engine.id IS NOT NULL AND epoch IS NOT NULL AND sequence IS NOT NULL
)
SELECT * EXCLUDE newest
FROM compared
WHERE newest IS NULL OR (epoch, sequence) > newest OR (type = 'source_retired' AND (epoch, sequence) = newest);

CREATE OR REPLACE TABLE running AS
WITH numbered AS (
    SELECT
        *,
        max(line) FILTER (type = 'snapshot_started') OVER earlier AS snapshot_start,
        max(line) FILTER (type IN ('snapshot_completed', 'lost', 'source_retired')) OVER earlier AS snapshot_end
    FROM records
    WINDOW earlier AS (
        PARTITION BY host, engine.id ORDER BY line ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
), removals AS ( -- of containers without a record after this line, except in namespaces that could not be listed
    SELECT host, engine, snapshot_start AS line, coalesce(snapshot.failed, []) AS failed
    FROM numbered
    WHERE type = 'snapshot_completed' AND snapshot_start > coalesce(snapshot_end, 0) -- otherwise, it is void
    UNION ALL
    SELECT host, engine, line, [] FROM records WHERE type = 'source_retired'
), latest AS (
    FROM records
    WHERE type IN ('started', 'paused', 'unpaused', 'present', 'exited')
    QUALIFY row_number() OVER (PARTITION BY host, engine.id, id ORDER BY line DESC) = 1
)
FROM latest
WHERE type <> 'exited' AND NOT EXISTS (
    FROM removals
    WHERE removals.host = latest.host AND removals.engine = latest.engine AND removals.line > latest.line
        AND NOT list_contains(failed, container.namespace)
);
