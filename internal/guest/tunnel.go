package guest

import (
	"bufio"
	"io"
	"net"

	"github.com/hashicorp/yamux"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
)

// tunnel connects the host to Docker's socket.
func (g *Guest) tunnel(stream *yamux.Stream, r *bufio.Reader, req *guestv1.TunnelRequest) {
	const op = "connect to Docker"
	if req.Target != guestv1.TunnelRequest_TARGET_DOCKER {
		refuse(stream, warmboot.Errorf(warmboot.Invalid, op, "there is no tunnel to target %v", req.Target))
		return
	}
	conn, err := net.Dial("unix", g.docker.socket)
	if err != nil {
		refuse(stream, &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "Docker does not run in the guest", Err: err})
		return
	}
	defer conn.Close()
	if err := guestrpc.WriteMessage(stream, &guestv1.Response{Result: &guestv1.Response_Tunnel{Tunnel: &guestv1.TunnelResponse{}}}); err != nil {
		return
	}
	output := make(chan struct{})
	go func() {
		defer close(output)
		_, _ = io.Copy(stream, conn)
		_ = stream.Close() // Docker says no more
	}()
	if _, err := io.Copy(conn, &guestrpc.ChunkReader{R: r}); err == nil {
		// The host's input has ended, but it still reads. It closes the stream when it has read enough.
		_ = conn.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, r)
	}
	conn.Close()
	<-output
}
