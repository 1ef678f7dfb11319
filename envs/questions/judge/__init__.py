"""How an answer is read from a reply and compared with the right one: ``verify`` says in what order."""
