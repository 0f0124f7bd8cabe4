// Package controlplane holds the use cases: what happens when somebody registers an image, builds a snapshot, creates or
// stops a container. It decides between a warm and a cold boot, tracks the health of snapshots, and knows neither HTTP
// nor SQL nor how a microVM is run: those are the Store and the Host it is given.
package controlplane
