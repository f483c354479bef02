// An xDS client that shares no code with the control plane: the protocol from go-control-plane, the
// resources from Istio's own Go package. It subscribes, confirms, and prints one JSON line per response.
//
//	xds-peer ADDRESS TOKEN NODE SCOPE [NAME...]
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

const (
	addressType       = "type.googleapis.com/istio.workload.Address"
	authorizationType = "type.googleapis.com/istio.security.Authorization"
)

type resource struct {
	Name    string          `json:"name"`
	Version string          `json:"version"`
	Aliases []string        `json:"aliases"`
	Content json.RawMessage `json:"content"`
	Unknown int             `json:"unknownBytes"`
}

type line struct {
	Type      string     `json:"type"`
	Version   string     `json:"version"`
	Resources []resource `json:"resources"`
	Removed   []string   `json:"removed"`
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// send fails with what the server said where it has ended the stream: Send itself only tells that it has.
func send(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, request *discovery.DeltaDiscoveryRequest) {
	err := stream.Send(request)
	if err == io.EOF {
		for err = nil; err == nil; {
			_, err = stream.Recv()
		}
	}
	fail(err)
}

// content decodes a resource, and counts the bytes of fields that Istio's definition does not have.
func content(typeURL string, bytes []byte) (json.RawMessage, int) {
	var message proto.Message = &workloadapi.Address{}
	if typeURL == authorizationType {
		message = &security.Authorization{}
	}
	fail(proto.Unmarshal(bytes, message))
	unknown := len(message.ProtoReflect().GetUnknown())
	if address, ok := message.(*workloadapi.Address); ok {
		if workload := address.GetWorkload(); workload != nil {
			unknown += len(workload.ProtoReflect().GetUnknown())
			workload.Extensions = nil
		}
		if service := address.GetService(); service != nil {
			unknown += len(service.ProtoReflect().GetUnknown())
			service.Extensions = nil
		}
	}
	// What the extensions hold is of no type that is known here.
	if authorization, ok := message.(*security.Authorization); ok {
		authorization.Extensions = nil
	}
	text, err := protojson.Marshal(message)
	fail(err)
	return text, unknown
}

func main() {
	address, token, node, scope, names := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	fail(err)
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token)
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(connection).DeltaAggregatedResources(ctx)
	fail(err)
	fields, err := structpb.NewStruct(map[string]any{"NODE_NAME": node, "PORTCULLIS_SCOPE": scope})
	fail(err)
	self := &core.Node{Id: "ztunnel~" + node, Metadata: fields}
	send(stream, &discovery.DeltaDiscoveryRequest{Node: self, TypeUrl: authorizationType})
	send(stream, &discovery.DeltaDiscoveryRequest{TypeUrl: addressType, ResourceNamesSubscribe: names})

	// A line on the standard input makes the next response be refused.
	refuse := make(chan string, 1)
	go func() {
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			refuse <- scanner.Text()
		}
		os.Exit(0)
	}()
	for {
		response, err := stream.Recv()
		fail(err)
		out := line{Type: response.TypeUrl, Version: response.SystemVersionInfo, Resources: []resource{}, Removed: response.RemovedResources}
		for _, one := range response.Resources {
			if one.Resource.TypeUrl != response.TypeUrl {
				fail(fmt.Errorf("a resource of type %s in a response of type %s", one.Resource.TypeUrl, response.TypeUrl))
			}
			text, unknown := content(response.TypeUrl, one.Resource.Value)
			out.Resources = append(out.Resources, resource{one.Name, one.Version, one.Aliases, text, unknown})
		}
		answer := &discovery.DeltaDiscoveryRequest{TypeUrl: response.TypeUrl, ResponseNonce: response.Nonce}
		select {
		case reason := <-refuse:
			answer.ErrorDetail = &status.Status{Code: 3, Message: reason}
		default:
		}
		text, err := json.Marshal(out)
		fail(err)
		fmt.Println(string(text))
		send(stream, answer)
	}
}
