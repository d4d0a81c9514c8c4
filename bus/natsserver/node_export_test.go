package natsserver

// StopServer stops the server behind the node's back.
func (n *Node) StopServer() {
	r := n.running()
	r.srv.Shutdown()
	r.srv.WaitForShutdown()
}
