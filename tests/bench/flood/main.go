// Flood forwards task events of existing containers through containerd, as its shims do, and prints a report as JSON.
// No tasks exist behind the events.
//
// Each container is repeatedly started, paused, resumed and exited, each time with a new pid. Events of a container are
// in order; the timestamp of each event is the time at which it was sent.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

type options struct {
	address    string
	namespace  string
	prefix     string
	containers int
	create     bool
	events     int
	scheduled  bool
	workers    int
	limit      time.Duration
}

// report is the output; times are Unix nanoseconds.
type report struct {
	Containers   int     `json:"containers"`
	Events       int     `json:"events"`
	StartedAt    int64   `json:"started_at"`
	FinishedAt   int64   `json:"finished_at"`
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"per_second"`
	CallMicros   micros  `json:"call_microseconds"`
	BehindMicros micros  `json:"behind_schedule_microseconds"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

func run() error {
	opts, err := parse()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, opts.limit)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", opts.namespace)
	connection, err := grpc.NewClient("unix://"+opts.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	if opts.create {
		if err := createContainers(ctx, connection, opts); err != nil {
			return fmt.Errorf("cannot create containers: %w", err)
		}
	}
	var due []time.Duration
	if opts.scheduled {
		if err := json.NewDecoder(os.Stdin).Decode(&due); err != nil {
			return fmt.Errorf("cannot read the schedule: %w", err)
		}
		if len(due) != opts.events {
			return fmt.Errorf("the schedule has %d times for %d events", len(due), opts.events)
		}
	}
	result, err := forwardAll(ctx, connection, opts, due)
	if err != nil {
		return fmt.Errorf("cannot forward events: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func parse() (options, error) {
	var opts options
	flag.StringVar(&opts.address, "address", "/run/containerd/containerd.sock", "containerd's socket")
	flag.StringVar(&opts.namespace, "namespace", "bench", "namespace of the containers")
	flag.StringVar(&opts.prefix, "prefix", "flood-", "prefix of the containers' ids; a number from 0 follows")
	flag.IntVar(&opts.containers, "containers", 100, "number of containers")
	flag.BoolVar(&opts.create, "create", false, "create missing containers")
	flag.IntVar(&opts.events, "events", 40000, "number of events to forward")
	flag.BoolVar(&opts.scheduled, "scheduled", false,
		"send the events at times from standard input, a JSON array of nanoseconds after the start; otherwise at once")
	flag.IntVar(&opts.workers, "workers", 4, "number of concurrent calls")
	flag.DurationVar(&opts.limit, "limit", 2*time.Minute, "time limit")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return opts, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case opts.containers < 1 || opts.workers < 1 || opts.events < 0:
		return opts, errors.New("containers and workers must be at least 1; events must not be negative")
	case opts.events%(len(phases)*opts.containers) != 0:
		// Otherwise some containers would stay in the state running without a task.
		return opts, fmt.Errorf("events must be a multiple of %d times the containers", len(phases))
	}
	return opts, nil
}
