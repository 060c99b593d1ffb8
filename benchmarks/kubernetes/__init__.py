"""The scale of the Kubernetes part: real API server, operator and gateway; pods and agents are fake."""
