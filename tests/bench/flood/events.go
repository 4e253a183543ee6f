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

const firstPid = 1 << 22 // beyond what the kernel gives out

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

// envelope makes the event of that number: all containers go through their phases side by side.
func envelope(wanted options, number int, now time.Time) (*types.Envelope, error) {
	round, container := number/wanted.containers, number%wanted.containers
	life, step := round/len(phases), phases[round%len(phases)]
	at := timestamppb.New(now)
	id := fmt.Sprintf("%s%d", wanted.prefix, container)
	message := step.event(id, uint32(firstPid+life*wanted.containers+container), at)
	value, err := proto.Marshal(message)
	if err != nil {
		return nil, err
	}
	// containerd's names of types have no "type.googleapis.com/" before them.
	event := &anypb.Any{TypeUrl: string(message.ProtoReflect().Descriptor().FullName()), Value: value}
	return &types.Envelope{Timestamp: at, Namespace: wanted.namespace, Topic: step.topic, Event: event}, nil
}

// forwardAll shares the containers among the workers, so that the events of each are in order.
func forwardAll(ctx context.Context, connection *grpc.ClientConn, wanted options) (report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	calls := make([]time.Duration, wanted.events)
	behind := make([]time.Duration, wanted.events)
	var workers sync.WaitGroup
	for worker := range wanted.workers {
		workers.Go(func() {
			client := api.NewEventsClient(connection)
			for number := range wanted.events {
				if number%wanted.containers%wanted.workers != worker {
					continue
				}
				if wanted.rate > 0 {
					due := began.Add(time.Duration(float64(number) / wanted.rate * float64(time.Second)))
					sleepUntil(ctx, due)
					behind[number] = time.Since(due)
				}
				before := time.Now()
				if err := forward(ctx, client, wanted, number, before); err != nil {
					cancel(err)
					return
				}
				calls[number] = time.Since(before)
			}
		})
	}
	workers.Wait()
	ended := time.Now()
	seconds := ended.Sub(began).Seconds()
	return report{
		Containers: wanted.containers, Events: wanted.events, Began: began.UnixNano(), Ended: ended.UnixNano(),
		Seconds: seconds, PerSecond: float64(wanted.events) / seconds,
		CallMicros: summarize(calls), BehindMicro: summarize(behind),
	}, context.Cause(ctx)
}

func forward(ctx context.Context, client api.EventsClient, wanted options, number int, now time.Time) error {
	event, err := envelope(wanted, number, now)
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
