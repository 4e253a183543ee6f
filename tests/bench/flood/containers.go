package main

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// createContainers creates containers with the labels of `nerdctl compose` and an empty spec. They are never started.
func createContainers(ctx context.Context, connection *grpc.ClientConn, opts options) error {
	client := api.NewContainersClient(connection)
	for number := range opts.containers {
		id := fmt.Sprintf("%s%d", opts.prefix, number)
		project := fmt.Sprintf("project-%d", number%10)
		_, err := client.Create(ctx, &api.CreateContainerRequest{Container: &api.Container{
			ID:      id,
			Image:   "docker.io/library/busybox:latest",
			Runtime: &api.Container_Runtime{Name: "io.containerd.runc.v2"},
			Spec:    &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte("{}")},
			Labels: map[string]string{
				"com.docker.compose.project": project,
				"com.docker.compose.service": "web",
				"nerdctl/name":               project + "-" + id,
			},
		}})
		if err != nil && status.Code(err) != codes.AlreadyExists {
			return err
		}
	}
	return nil
}
