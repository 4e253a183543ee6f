// The running containers of all sources, from records on standard input, one a line: the fold of docs/events.md.
//
//	kcat -C -e -b localhost:9092 -t containers | go run examples/state.go
//
// It expects the records of each source in order, apart from repetitions. It prints one JSON document.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"log"
	"os"
	"slices"
)

type record struct {
	Version   int                        `json:"version"`
	Type      string                     `json:"type"`
	Host      *string                    `json:"host"`
	Engine    struct{ ID *string }       `json:"engine"`
	Epoch     *int64                     `json:"epoch"`
	Sequence  *int64                     `json:"sequence"`
	ID        string                     `json:"id"`
	Container json.RawMessage            `json:"container"`
	Snapshot  *struct{ Failed []string } `json:"snapshot"`
}

type sourceID struct{ host, engine string }

type source struct {
	Host       string                     `json:"host"`
	Engine     string                     `json:"engine"`
	Position   [2]int64                   `json:"position"`
	Retired    bool                       `json:"retired"`
	Containers map[string]json.RawMessage `json:"containers"`
	listed     map[string]bool            // by the snapshot that is being read; nil if there is none, or if it is void
}

type state struct {
	Invalid int       `json:"invalid"`
	Sources []*source `json:"sources"` // in the order of their first records
	byID    map[sourceID]*source
}

// decode returns the record in a line, also in a CloudEvents envelope; nil if there is none of major version 1.
func decode(line []byte) *record {
	var envelope struct {
		SpecVersion string          `json:"specversion"`
		Data        json.RawMessage `json:"data"`
	}
	if json.Unmarshal(line, &envelope) == nil && envelope.SpecVersion != "" {
		line = envelope.Data
	}
	var r record
	if json.Unmarshal(line, &r) != nil || r.Version != 1 {
		return nil
	}
	if r.Host == nil || r.Engine.ID == nil || r.Epoch == nil || r.Sequence == nil {
		return nil
	}
	if r.Container != nil && json.Unmarshal(r.Container, &struct{ Namespace string }{}) != nil {
		return nil
	}
	return &r
}

func (s *state) apply(r *record) {
	id := sourceID{*r.Host, *r.Engine.ID}
	src := s.byID[id]
	if src == nil {
		src = &source{Host: id.host, Engine: id.engine, Containers: map[string]json.RawMessage{}}
		s.byID[id] = src
		s.Sources = append(s.Sources, src)
	}
	position := [2]int64{*r.Epoch, *r.Sequence}
	order := slices.Compare(position[:], src.Position[:])
	if r.Type == "source_retired" && order >= 0 {
		src.Position, src.Retired, src.listed = position, true, nil
		src.Containers = map[string]json.RawMessage{}
		return
	}
	if order <= 0 || r.Type == "heartbeat" {
		return // a repetition, or a retirement that is too late
	}
	src.Position, src.Retired = position, false
	switch r.Type {
	case "started", "paused", "unpaused", "present":
		src.Containers[r.ID] = r.Container
		if src.listed != nil {
			src.listed[r.ID] = true
		}
	case "exited":
		delete(src.Containers, r.ID)
	case "snapshot_started":
		src.listed = map[string]bool{}
	case "lost":
		src.listed = nil // the snapshot is void
	case "snapshot_completed":
		if src.listed != nil && r.Snapshot != nil {
			src.removeUnlisted(r.Snapshot.Failed)
		}
		src.listed = nil
	}
}

// removeUnlisted removes what a complete snapshot does not list, except in namespaces that could not be listed.
func (src *source) removeUnlisted(failed []string) {
	for id, document := range src.Containers {
		var container struct{ Namespace string }
		_ = json.Unmarshal(document, &container) // decode has checked it
		if !src.listed[id] && !slices.Contains(failed, container.Namespace) {
			delete(src.Containers, id)
		}
	}
}

func main() {
	result := state{Sources: []*source{}, byID: map[sourceID]*source{}}
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 16<<20)
	for input.Scan() {
		if r := decode(input.Bytes()); r != nil {
			result.apply(r)
		} else if len(bytes.TrimSpace(input.Bytes())) > 0 {
			result.Invalid++
		}
	}
	if err := input.Err(); err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}
