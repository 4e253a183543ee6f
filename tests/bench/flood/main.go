// Flood forwards events of existing container records through containerd, as its shims do, and tells on standard
// output, as JSON, what it sent and when. There are no tasks behind the events.
//
// Each container lives again and again: started, paused, resumed, exited, every life with a pid of its own. Events of
// one container are in order; each carries the time at which it was sent.
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
	rate       float64
	workers    int
	limit      time.Duration
}

// report is what is printed; times are Unix nanoseconds.
type report struct {
	Containers  int     `json:"containers"`
	Events      int     `json:"events"`
	Began       int64   `json:"began"`
	Ended       int64   `json:"ended"`
	Seconds     float64 `json:"seconds"`
	PerSecond   float64 `json:"per_second"`
	CallMicros  micros  `json:"call_microseconds"`
	BehindMicro micros  `json:"behind_schedule_microseconds"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

func run() error {
	wanted, err := parse()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, wanted.limit)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", wanted.namespace)
	connection, err := grpc.NewClient("unix://"+wanted.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	if wanted.create {
		if err := createContainers(ctx, connection, wanted); err != nil {
			return fmt.Errorf("creating containers: %w", err)
		}
	}
	result, err := forwardAll(ctx, connection, wanted)
	if err != nil {
		return fmt.Errorf("forwarding events: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func parse() (options, error) {
	var wanted options
	flag.StringVar(&wanted.address, "address", "/run/containerd/containerd.sock", "containerd's socket")
	flag.StringVar(&wanted.namespace, "namespace", "bench", "the namespace of the containers")
	flag.StringVar(&wanted.prefix, "prefix", "flood-", "ids are this and a number from 0")
	flag.IntVar(&wanted.containers, "containers", 100, "how many containers there are")
	flag.BoolVar(&wanted.create, "create", false, "create those container records that are not there yet")
	flag.IntVar(&wanted.events, "events", 40000, "how many events to forward; 0: none")
	flag.Float64Var(&wanted.rate, "rate", 0, "events per second; 0: as fast as containerd takes them")
	flag.IntVar(&wanted.workers, "workers", 4, "calls that wait for containerd at the same time")
	flag.DurationVar(&wanted.limit, "limit", 2*time.Minute, "give up after this time")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return wanted, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case wanted.containers < 1 || wanted.workers < 1 || wanted.events < 0 || wanted.rate < 0:
		return wanted, errors.New("containers and workers must be at least 1, events and rate not negative")
	case wanted.events%(len(phases)*wanted.containers) != 0:
		// Else some containers would be left alive, with no task behind them.
		return wanted, fmt.Errorf("events must be a multiple of %d times the containers", len(phases))
	}
	return wanted, nil
}
