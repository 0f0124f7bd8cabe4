// Package guestrpc speaks the guest API (proto/guest/v1) over any byte stream: Client is the host's side, and the framing
// that both sides share (Handshake, Accept, ReadMessage, ChunkReader) is here too, so that internal/guest cannot drift from it.
//
// A virtio-serial channel is one pipe that outlives whoever talked over it last, so bytes of an earlier conversation may
// still sit in it, in both directions. A conversation therefore begins with a handshake around a random nonce: each side
// skips whatever comes before the other's mark. After it the stream is a yamux session in which every call has a stream.
//
// The host does not trust the guest: messages are bounded, every call ends with its context, and a guest that opens streams
// or sends pings, which it never has a reason to do, loses its session (fence).
package guestrpc
