package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"warmboot/internal/guestrpc"
)

// playIntruder is a process within a machine that tries to use the guest API over vsock. Its arguments are the context ids to try. It says one
// line for each, and at first whether the kernel connects processes of one machine at all: if not, the rest proves nothing.
func playIntruder() {
	if err := talkToSelf(); err != nil {
		fmt.Println("loopback fails:", err)
		return
	}
	fmt.Println("loopback works")
	for _, arg := range os.Args[1:] {
		cid, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			panic(err)
		}
		fmt.Println(arg, intrude(uint32(cid)))
	}
	fmt.Println("as the host:", bindAsHost())
}

// talkToSelf has a word with a listener of its own.
func talkToSelf() error {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, 6000, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			io.WriteString(conn, "x")
			conn.Close()
		}
	}()
	conn, err := vsock.Dial(vsock.Local, 6000, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// intruderPatience is much longer than the agent takes to answer the host.
const intruderPatience = time.Second

// intrude tries to have a conversation with the guest agent.
func intrude(cid uint32) string {
	ctx, cancel := context.WithTimeout(context.Background(), intruderPatience)
	defer cancel()
	said := "nothing"
	c, err := guestrpc.Connect(ctx, func(context.Context) (net.Conn, error) {
		conn, err := vsock.Dial(cid, VsockPort, nil)
		if err != nil {
			said = err.Error()
			return nil, err
		}
		said = "connected"
		return conn, nil
	})
	if err != nil {
		return "no answer, " + said
	}
	defer c.Close()
	h, err := c.Health(ctx)
	return fmt.Sprint("ANSWERED ", h, err)
}

// bindAsHost tries to have the host's address.
func bindAsHost() error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 6001}); err != nil {
		return err
	}
	return errors.New("BOUND")
}
