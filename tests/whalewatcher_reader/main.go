// Decodes JSON lines of the encoding "whalewatcher" from standard input with encoding/json, into copies of the structs
// of github.com/thediveo/whalewatcher/v2, and prints the values of the fields.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"
	"time"
)

// As in package engineclient.
type ContainerEventType byte

const (
	ContainerStarted ContainerEventType = iota
	ContainerExited
	ContainerPaused
	ContainerUnpaused
)

type EngineContainerEvent struct {
	Timestamp time.Time
	Type      ContainerEventType
	ID        string
	Project   string
}

// As in package whalewatcher.
type Container struct {
	ID       string
	Name     string
	Labels   map[string]string
	PID      int
	Project  string
	Paused   bool
	Rucksack any
}

// As in package watcher.
type WatcherContainerEvent struct {
	Type      ContainerEventType
	Container *Container
}

var names = map[ContainerEventType]string{
	ContainerStarted:  "started",
	ContainerExited:   "exited",
	ContainerPaused:   "paused",
	ContainerUnpaused: "unpaused",
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var engine EngineContainerEvent
		if err := json.Unmarshal(lines.Bytes(), &engine); err != nil {
			log.Fatalf("engineclient.ContainerEvent: %v: %s", err, lines.Text())
		}
		var watcher WatcherContainerEvent
		if err := json.Unmarshal(lines.Bytes(), &watcher); err != nil {
			log.Fatalf("watcher.ContainerEvent: %v: %s", err, lines.Text())
		}
		err := out.Encode(map[string]any{
			"nanoseconds": engine.Timestamp.UnixNano(),
			"type":        names[engine.Type],
			"id":          engine.ID,
			"project":     engine.Project,
			"again":       names[watcher.Type],
			"container":   watcher.Container,
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
