package serve

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/millrace-io/millrace/plugins/internal/wire"
)

// peerCredentials lets only the worker's process talk to the plugin: whoever
// else finds the socket is refused. The socket's directory is private besides.
type peerCredentials struct {
	credentials.TransportCredentials
	worker int // process id
}

func newPeerCredentials(worker int) credentials.TransportCredentials {
	return &peerCredentials{TransportCredentials: insecure.NewCredentials(), worker: worker}
}

// ServerHandshake checks who has connected.
func (c *peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := wire.CheckPeer(conn, c.worker); err != nil {
		return nil, nil, fmt.Errorf("refuse connection: %w", err)
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

// ClientHandshake is not used on this side.
func (*peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("serve: not a client")
}

// Clone returns the same credentials, which do not change.
func (c *peerCredentials) Clone() credentials.TransportCredentials { return c }
