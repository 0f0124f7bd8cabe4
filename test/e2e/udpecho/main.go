// Command udpecho answers each datagram to port 5353 with itself. It is what a container of the tests runs behind a published UDP port, for which
// its image has no program.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	if err := echo(); err != nil {
		fmt.Fprintln(os.Stderr, "udpecho:", err)
		os.Exit(1)
	}
}

func echo() error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 5353})
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for b := make([]byte, 1500); ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err == nil {
			_, err = c.WriteToUDPAddrPort(b[:n], from)
		}
		if err != nil {
			return err
		}
	}
}
