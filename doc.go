// Package warmboot is the domain: runtime images, runtime snapshots, containers, their states and the moves
// between them, and the one error type that every room of this project returns.
//
// It imports nothing but the standard library, and every other package may import it.
package warmboot
