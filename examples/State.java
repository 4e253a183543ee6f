// The running containers of all sources, from records on standard input, one a line: the fold of docs/events.md.
//
//     kcat -C -e -b localhost:9092 -t containers | java -cp 'kafka/libs/*' examples/State.java
//
// It expects the records of each source in order, apart from repetitions. It prints one JSON document. It needs Java 17
// and Jackson, which Kafka's archive has in libs.

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

public class State {
    private static final ObjectMapper JSON =
            new ObjectMapper().enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

    private record SourceId(String host, String engine) {}

    private record Position(long epoch, long sequence) implements Comparable<Position> {
        private static final Comparator<Position> ORDER =
                Comparator.comparingLong(Position::epoch).thenComparingLong(Position::sequence);

        @Override
        public int compareTo(Position other) {
            return ORDER.compare(this, other);
        }
    }

    private static class Source {
        Position position = new Position(0, 0);
        boolean retired;
        final Map<String, JsonNode> containers = new HashMap<>();
        Set<String> listed; // by the snapshot that is being read; null if there is none, or if it is void

        /** Remove what a complete snapshot does not list, except in namespaces that could not be listed. */
        void removeUnlisted(JsonNode failedNamespaces) {
            Set<JsonNode> failed = new HashSet<>();
            failedNamespaces.forEach(failed::add);
            containers.entrySet().removeIf(each ->
                    !listed.contains(each.getKey()) && !failed.contains(each.getValue().path("namespace")));
        }
    }

    private final Map<SourceId, Source> sources = new LinkedHashMap<>(); // in the order of their first records
    private int invalid;

    /** Return the record in a line, also in a CloudEvents envelope, if there is one of major version 1. */
    private static Optional<JsonNode> decode(String line) {
        JsonNode document;
        try {
            document = JSON.readTree(line);
        } catch (JsonProcessingException error) {
            return Optional.empty();
        }
        JsonNode record = document.hasNonNull("specversion") ? document.path("data") : document;
        boolean isRecord = record.path("version").equals(IntNode.valueOf(1))
                && record.path("host").isTextual()
                && record.path("engine").path("id").isTextual()
                && isLong(record.path("epoch"))
                && isLong(record.path("sequence"))
                && isObjectOrAbsent(record.path("container"))
                && isObjectOrAbsent(record.path("snapshot"));
        return isRecord ? Optional.of(record) : Optional.empty();
    }

    private static boolean isLong(JsonNode node) {
        return node.isIntegralNumber() && node.canConvertToLong();
    }

    private static boolean isObjectOrAbsent(JsonNode node) {
        return node.isObject() || node.isNull() || node.isMissingNode();
    }

    private void apply(JsonNode record) {
        var id = new SourceId(record.path("host").textValue(), record.path("engine").path("id").textValue());
        Source source = sources.computeIfAbsent(id, unknown -> new Source());
        var position = new Position(record.path("epoch").longValue(), record.path("sequence").longValue());
        String type = record.path("type").asText();
        int order = position.compareTo(source.position);
        if (type.equals("source_retired") && order >= 0) {
            source.position = position;
            source.retired = true;
            source.containers.clear();
            source.listed = null;
            return;
        }
        if (order <= 0 || type.equals("heartbeat")) {
            return; // a repetition, or a retirement that is too late
        }
        source.position = position;
        source.retired = false;
        String container = record.path("id").asText();
        switch (type) {
            case "started", "paused", "unpaused", "present" -> {
                source.containers.put(container, record.path("container"));
                if (source.listed != null) {
                    source.listed.add(container);
                }
            }
            case "exited" -> source.containers.remove(container);
            case "snapshot_started" -> source.listed = new HashSet<>();
            case "lost" -> source.listed = null; // the snapshot is void
            case "snapshot_completed" -> {
                if (source.listed != null) {
                    source.removeUnlisted(record.path("snapshot").path("failed"));
                }
                source.listed = null;
            }
            default -> {} // other types do not change which containers are running
        }
    }

    private void read(BufferedReader input) throws IOException {
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            if (!line.isBlank()) {
                decode(line).ifPresentOrElse(this::apply, () -> invalid++);
            }
        }
    }

    private JsonNode document() {
        ArrayNode documents = JSON.createArrayNode();
        sources.forEach((id, source) -> {
            ObjectNode document = documents.addObject().put("host", id.host()).put("engine", id.engine());
            document.putArray("position").add(source.position.epoch()).add(source.position.sequence());
            document.put("retired", source.retired);
            document.putObject("containers").setAll(source.containers);
        });
        return JSON.createObjectNode().put("invalid", invalid).set("sources", documents);
    }

    public static void main(String[] arguments) throws IOException {
        var state = new State();
        state.read(new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8)));
        new PrintStream(System.out, true, StandardCharsets.UTF_8).println(state.document());
    }
}
