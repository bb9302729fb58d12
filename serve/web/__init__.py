"""HTTP: the page, WebRTC, WebSockets and the routes of LiveTalking."""
