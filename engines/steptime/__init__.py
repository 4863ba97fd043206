"""What one iteration costs: from data sheets, from measured tables, or fitted to a deployment."""
