package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	events "github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const firstPid = 1 << 22 // the kernel's maximum, so that no process has one of the pids

type phase struct {
	topic string
	event func(id string, pid uint32, now *timestamppb.Timestamp) proto.Message
}

var phases = []phase{
	{"/tasks/start", func(id string, pid uint32, _ *timestamppb.Timestamp) proto.Message {
		return &events.TaskStart{ContainerID: id, Pid: pid}
	}},
	{"/tasks/paused", func(id string, _ uint32, _ *timestamppb.Timestamp) proto.Message {
		return &events.TaskPaused{ContainerID: id}
	}},
	{"/tasks/resumed", func(id string, _ uint32, _ *timestamppb.Timestamp) proto.Message {
		return &events.TaskResumed{ContainerID: id}
	}},
	{"/tasks/exit", func(id string, pid uint32, now *timestamppb.Timestamp) proto.Message {
		return &events.TaskExit{ContainerID: id, ID: id, Pid: pid, ExitStatus: 0, ExitedAt: now}
	}},
}

// envelope returns the event with the given number: all containers go through the phases concurrently.
func envelope(opts options, number int, now time.Time) (*types.Envelope, error) {
	round, container := number/opts.containers, number%opts.containers
	incarnation, phase := round/len(phases), phases[round%len(phases)]
	at := timestamppb.New(now)
	id := fmt.Sprintf("%s%d", opts.prefix, container)
	message := phase.event(id, uint32(firstPid+incarnation*opts.containers+container), at)
	value, err := proto.Marshal(message)
	if err != nil {
		return nil, err
	}
	// containerd's type URLs have no prefix "type.googleapis.com/".
	event := &anypb.Any{TypeUrl: string(message.ProtoReflect().Descriptor().FullName()), Value: value}
	return &types.Envelope{Timestamp: at, Namespace: opts.namespace, Topic: phase.topic, Event: event}, nil
}

// forwardAll assigns each container to one worker, so that its events stay in order. due has the time of each event after
// the start; without it, events are sent as fast as containerd accepts them.
func forwardAll(ctx context.Context, connection *grpc.ClientConn, opts options, due []time.Duration) (report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := time.Now()
	calls := make([]time.Duration, opts.events)
	behind := make([]time.Duration, opts.events)
	var workers sync.WaitGroup
	for worker := range opts.workers {
		workers.Go(func() {
			client := api.NewEventsClient(connection)
			for number := range opts.events {
				if number%opts.containers%opts.workers != worker {
					continue
				}
				if due != nil {
					at := started.Add(due[number])
					sleepUntil(ctx, at)
					behind[number] = time.Since(at)
				}
				before := time.Now()
				if err := forward(ctx, client, opts, number, before); err != nil {
					cancel(err)
					return
				}
				calls[number] = time.Since(before)
			}
		})
	}
	workers.Wait()
	finished := time.Now()
	seconds := finished.Sub(started).Seconds()
	return report{
		Containers: opts.containers, Events: opts.events, StartedAt: started.UnixNano(), FinishedAt: finished.UnixNano(),
		Seconds: seconds, PerSecond: float64(opts.events) / seconds,
		CallMicros: summarize(calls), BehindMicros: summarize(behind),
	}, context.Cause(ctx)
}

func forward(ctx context.Context, client api.EventsClient, opts options, number int, now time.Time) error {
	event, err := envelope(opts, number, now)
	if err != nil {
		return err
	}
	_, err = client.Forward(ctx, &api.ForwardRequest{Envelope: event})
	return err
}

func sleepUntil(ctx context.Context, due time.Time) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(due)):
	}
}

// micros is a distribution of durations, in microseconds.
type micros struct {
	P50 int64 `json:"p50"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

func summarize(durations []time.Duration) micros {
	if len(durations) == 0 {
		return micros{}
	}
	slices.Sort(durations)
	at := func(share float64) int64 {
		return durations[int(share*float64(len(durations)-1))].Microseconds()
	}
	return micros{P50: at(0.5), P99: at(0.99), Max: at(1)}
}
